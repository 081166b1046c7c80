"""The DICOM node: a PACS sends a series, and a segmentation and a report come back."""

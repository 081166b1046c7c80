"""Files made of a result: DICOM objects, overlays, heat maps, synthetic images."""

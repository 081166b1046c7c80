"""The DICOMweb face of a node (PS3.18): STOW-RS in, QIDO-RS and WADO-RS over what it holds."""

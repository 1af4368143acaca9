"""Studies from a PACS, and results back into it: DICOMweb or DIMSE."""

"""Write DICOM files and pictures: synthetic mammograms, segmentations, reports."""

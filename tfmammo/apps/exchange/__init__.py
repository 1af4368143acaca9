"""Write data sets for other tools: nnU-Net, COCO, YOLO, Hugging Face datasets, MONAI.

`tfmammo.archives.layouts` reads them back.
"""

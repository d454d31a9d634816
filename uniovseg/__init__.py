"""uniovseg: open-vocabulary segmentation from unpaired image-mask and image-text pairs, on Ray."""

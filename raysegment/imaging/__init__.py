"""One scan in NumPy and OpenCV: preprocessing, augmentation, cleaning, measuring, phantoms."""

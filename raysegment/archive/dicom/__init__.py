"""DICOM: headers, the places of slices, pixels, series and segmentations.

What a header holds of people stays within the objects that these modules hand on; messages name files and causes, never
a header's text. Libraries that read or write DICOM are imported inside of functions: they take a third of a second.
"""

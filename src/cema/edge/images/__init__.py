"""Where the images of ``cema edge run`` come from: a file for each kind of source, and `opened` to choose."""

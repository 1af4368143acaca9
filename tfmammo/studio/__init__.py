"""The studio: lesions into mammograms, mammograms read, and reader studies, in a browser (extra `serve`)."""

"""The figures as PNG files, drawn with matplotlib."""

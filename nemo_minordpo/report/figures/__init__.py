"""The figures, drawn with matplotlib as PNG files."""

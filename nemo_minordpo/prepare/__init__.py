"""Stage `prepare`: data sets in, validated preference pairs out."""

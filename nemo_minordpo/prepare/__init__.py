"""Stage `prepare`: turn data sets into validated preference pairs."""

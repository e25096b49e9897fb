"""One run: settings in, one record out."""

"""The fine-tuning methods that the study compares, by name (`increlora.methods.registry`)."""

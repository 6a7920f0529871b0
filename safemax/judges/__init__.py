"""Networks that look at images: classifiers with and without a reject class, and Inception."""

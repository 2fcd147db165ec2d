"""Small structures and models, and slow independent implementations in numpy that the package is tested against."""

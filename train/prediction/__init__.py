"""From images as people have them to label maps in files."""

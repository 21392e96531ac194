"""From the bytes of an image to pixels, views, patches and masks."""

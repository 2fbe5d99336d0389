"""From a folder or bucket to a manifest, and from a manifest's row to pixels."""

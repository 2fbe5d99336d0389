"""Masks as files of one format each; headers come as arguments."""

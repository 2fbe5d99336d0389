"""The tables that inference writes: their columns, parts, masks, lock and export."""

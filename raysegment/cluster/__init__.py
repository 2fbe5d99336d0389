"""The only room that imports Ray: it distributes what `pipeline` does, and never imports Keras."""

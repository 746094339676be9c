"""What is made of kept models: drawings, embeddings, exports. Needs torch."""

"""What is measured besides accuracy: sparsity, masks, communication."""

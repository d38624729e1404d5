"""Science against sports: whose proxy data lower whose uncertainty."""

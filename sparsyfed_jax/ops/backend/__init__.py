"""Operations tuned to a platform."""

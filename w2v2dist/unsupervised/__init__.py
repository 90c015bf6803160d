"""wav2vec-U: recognition without labels (Baevski et al., 2021; Liu et al., 2022)."""

"""Commands that turn folders of recordings into WebDataset shards."""

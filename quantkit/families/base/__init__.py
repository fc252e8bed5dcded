"""What a family file is made of, and the code that applies it: rules, keys, traits, the registry, the mapping."""

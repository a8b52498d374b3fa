"""An OpenAI-compatible server over ``generation.DiffusionGemmaModel`` and ``engine.threaded.ThreadedEngine``."""

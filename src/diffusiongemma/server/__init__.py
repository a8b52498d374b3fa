"""An OpenAI-compatible server over ``api.DiffusionGemmaModel`` and ``engine.shared.SharedEngine``."""

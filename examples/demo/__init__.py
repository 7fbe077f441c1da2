"""``python -m examples.demo``: llmprod's main job on real traffic and misbehaving servers, in about a minute."""

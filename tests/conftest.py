from hypothesis import HealthCheck, settings

# A machine that is busy, or that builds its tables of characters for the first time, is no failure.
settings.register_profile(
    "kaixu", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("kaixu")

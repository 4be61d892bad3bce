"""Measuring anonymized pictures against their sources, beside simpler methods and under attack: `faceanon evaluate`."""

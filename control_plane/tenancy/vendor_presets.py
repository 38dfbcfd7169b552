"""What a known vendor's name says of it: so that who adds one need not."""

from dataclasses import replace

from control_plane.errors import BadArgument
from control_plane.tenancy.vendors import NewVendor
from gateway.vendors.presets import BASE_URL_FORMS, PLACEHOLDER_KEY, PRESETS, Preset


def with_preset(
    vendor: NewVendor, *, preset: str | None = None, usage_unasked: bool | None = None
) -> NewVendor:
    """Return a vendor with everything that was not said of it, from a preset where one fits.

    `preset` names it; without it, the vendor's own name does, and where that one is called at a
    base URL of its own, it tells no more than the kind. `usage_unasked` is what was said of it,
    None for nothing. What was said always holds. Raises BadArgument where something is missing.
    """
    known = _preset(vendor, preset)
    if known is not None:
        unasked = known.usage_unasked if usage_unasked is None else usage_unasked
        is_there = not vendor.base_url  # at the preset's own address
        vendor = replace(
            vendor,
            kind=vendor.kind or known.kind,
            base_url=vendor.base_url or known.base_url,
            is_private=vendor.is_private or (is_there and known.is_private),
            usage_unasked=unasked,
        )
    elif usage_unasked is not None:
        vendor = replace(vendor, usage_unasked=usage_unasked)
    if not vendor.base_url and vendor.kind in BASE_URL_FORMS:
        raise BadArgument(
            f"--base-url is missing. For {vendor.kind} it is {BASE_URL_FORMS[vendor.kind]}",
            field="base-url",
        )
    for value, name in ((vendor.kind, "kind"), (vendor.base_url, "base-url")):
        if not value:
            raise BadArgument(
                f"--{name} is missing, and '{vendor.name}' is no known vendor of that kind. "
                f"Known are {', '.join(PRESETS)}.",
                field=name,
            )
    if not vendor.key and vendor.is_private:
        return replace(vendor, key=PLACEHOLDER_KEY)
    if not vendor.key:
        raise BadArgument(
            "--key-file is missing: only a private vendor may need no key.", field="key-file"
        )
    return vendor


def _preset(vendor: NewVendor, name: str | None) -> Preset | None:
    if name is None:
        known = PRESETS.get(vendor.name)
        if known is None or vendor.kind not in ("", known.kind):
            return None
        return Preset(kind=known.kind, base_url=vendor.base_url) if vendor.base_url else known
    if name not in PRESETS:
        raise BadArgument(
            f"There is no preset '{name}'; there are {', '.join(PRESETS)}.", field="preset"
        )
    known = PRESETS[name]
    if vendor.kind not in ("", known.kind) and not vendor.base_url:
        raise BadArgument(
            f"The preset '{name}' is of kind {known.kind}: give another kind's --base-url too.",
            field="base-url",
        )
    return known

"""Sources, thresholds and groups of variants that several claims share."""

PAPER = "paper (arXiv 2606.24898)"
# Two runs of one seed were seen to differ by 0.03 to 0.07 nats: nothing smaller is claimed, nothing larger excused.
REPEAT_SMALL, REPEAT_LARGE = 0.03, 0.07

BLIND_GROWING = (("scale_invariant",), ("layernorm",), ("terminal_scale_invariant",))
BLIND = (*BLIND_GROWING, ("norm_penalty",), ("terminal_norm_penalty",), ("scale_removing",))
RAW = (("scale_visible",), ("terminal_scale_visible",))
PENALISED = (("norm_penalty",), ("terminal_norm_penalty",))

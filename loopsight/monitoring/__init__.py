"""What `loopsight.monitor` is made of: statistics of a state, trends, rules, sinks, and callbacks for trainers.

statistics   what one sample says of the states of one forward pass
trend        growth fitted to a few points, and when it reaches a limit
outlook      trend of the last samples, and the time to overflow
rules        when the monitor warns, and what it says
sinks        where records go: JSON lines, TensorBoard, any callable
huggingface  a `transformers.TrainerCallback` (optional dependency)
lightning    a Lightning `Callback` (optional dependency)
"""

"""What people do with a bundle on a workstation: evaluate, compare selectors, profile, measure with trtexec, draw."""

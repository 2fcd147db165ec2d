"""The plan of the data set: which trajectories are made, in which families and how long."""

# The plan at --scale 1: stratum -> (family, trajectories, frames per trajectory, steps between frames).
# A stratum is a kind of trajectory within a family; the splits are drawn within each family.
PLAN = {
    "water-cluster": ("water-cluster", 25, 12, 20),
    "ion-cluster": ("ion-cluster", 30, 12, 20),
    "proton-cluster": ("proton-cluster", 25, 12, 20),
    "scaled-cluster": ("scaled", 13, 10, 0),
    "scaled-scan": ("pair-scan", 14, 16, 0),
    "scaled-cell": ("scaled", 14, 8, 0),
    "contact-cluster": ("contact", 48, 12, 0),
    "contact-cell": ("contact", 16, 8, 0),
    "water-box": ("water-box", 6, 10, 15),
    "water-box-small": ("water-box", 11, 10, 10),
    "ion-box-solution": ("ion-box", 6, 10, 15),
    "ion-box-small": ("ion-box", 7, 10, 10),
    "ion-box-salt": ("ion-box", 2, 5, 0),
    "proton-box": ("proton-box", 4, 10, 15),
    "proton-box-small": ("proton-box", 4, 10, 10),
    "large-box": ("large-box", 1, 4, 8),
    "large-box-64": ("large-box", 1, 3, 5),
}
FAMILIES = list(dict.fromkeys(entry[0] for entry in PLAN.values()))
TEST_ONLY = {"large-box"}
TRAIN_ONLY = {"pair-scan"}  # each pair is scanned once or twice: a held-out one would be a pair never seen

DEFAULT_FRAMES = 1000
DEFAULT_EQUILIBRATION = 40


def tasks_of(args):
    """All trajectories of the plan: the longest first, then so ordered that all strata advance together."""
    tasks = []
    for stratum, (family, count, frames, interval) in PLAN.items():
        if family not in args.families:
            continue
        scaled = round(args.scale * count) if family in TEST_ONLY else max(min(3, count), round(args.scale * count))
        for index in range(scaled):
            name = f"{stratum}-{index:03d}"
            task = {
                "stratum": stratum,
                "family": family,
                "index": index,
                "name": name,
                "frames": min(frames, args.frames),
                "interval": interval,
                "equilibration": args.equilibration,
                "seed": args.seed,
                "file": str(args.work / f"{name}.json"),
            }
            tasks.append((0 if family in TEST_ONLY else (index + 0.5) / count, task))
    return [task for _, task in sorted(tasks, key=lambda item: item[0])]

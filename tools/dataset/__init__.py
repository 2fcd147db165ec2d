"""The parts of tools/make_dataset, one idea to a module.

A trajectory of the `plan` (its `compositions` say of what) starts from a random `packing` of `molecules` that a
`classical` model equilibrates (`liquid`, by `langevin` dynamics). Its frames come from `dynamics`, `salt`,
`distortions` or `scans`, are labelled by tblite (`labels`) and kept as text (`extxyz`) in `files` of their own;
`trajectory` is that job as a whole. At the end, `assembly` gathers them into `splits` and writes the `card`.
"""

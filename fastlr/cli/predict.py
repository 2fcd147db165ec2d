"""fastlr predict: energies, forces, stress and charges of structures in a file."""

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    BackendOption,
    ChargeOption,
    DeviceOption,
    DtypeOption,
    InputArgument,
    MemoryOption,
    ModelArgument,
    OverwriteOption,
    load_potential,
    parse_charge,
)


def predict(
    model: ModelArgument,
    input: InputArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write extended XYZ; without it, print a table."),
    ] = None,
    index: Annotated[str, typer.Option(metavar="I", help="Structures to take: 0, -1, :, 10:20:2.")] = ":",
    overwrite: OverwriteOption = False,
    charge: ChargeOption = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    memory_budget: MemoryOption = None,
) -> None:
    """Energies, forces, stress, charges and dipoles of structures."""
    total_charge = parse_charge(charge)

    from fastlr.errors import structure_number
    from fastlr.reading import read_structures
    from fastlr.simulation.prediction import predict_structures, write_predictions
    from fastlr.simulation.structures import check_output

    from .progress import progress_bar
    from .tables import print_predictions

    if output is not None:
        check_output(output, inputs=(input, model), overwrite=overwrite)
    structures = read_structures(input, index)
    potential = load_potential(model, backend, device, dtype, memory_budget)
    with progress_bar("predicting", len(structures)) as show:
        predictions = predict_structures(potential, structures, total_charge, source=input, on_done=show)
        if output is None:
            rows = list(predictions)
        else:
            write_predictions(output, predictions)
    if output is None:
        print_predictions(rows, [structure_number(atoms, k) for k, atoms in enumerate(structures)])
    else:
        print(f"wrote {len(structures)} structure{'s' if len(structures) > 1 else ''} to {output}")

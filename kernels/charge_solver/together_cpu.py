"""Conjugate gradients in one launch, for CPUs, in LLVM assembly: threads go through all iterations together.

The algorithm is that of ``conjugate_gradient.py``, whose weights are the squares of ``root``. Each thread has its share
of the atoms, of the rows of the pair list and of the lines of wave vectors; what one needs of the others lies behind a
barrier. Sums over atoms are sums over blocks of atoms, the same for any number of threads, which each thread adds up in
the same order: all take the same decisions, and charges have the same bits on any number of threads.
"""

from contextlib import contextmanager

from llvmlite import ir

from ..ewald.wave_parts import DOUBLE, WaveParts
from ..llvm import I32, I64

SLOTS = 16  # sums of a block of atoms, kept in cache lines of its own
BLOCKS, VECTORS_OF_A_BLOCK = 16, 8  # at most, and at least
CONVERGED, INDEFINITE, EXHAUSTED = 0, 1, 2
NUMBERS = ("stride", "atoms", "tiles", "thirds", "near_tiles", "has_start", "limit", "fragments")
SCALARS = ("constant", "average", "squared_eta", "target", "weights", "multiplier", "norm", "iterations", "status")
# of the atoms, in float64 and in the tables' type
ROWS = ("q", "r", "d", "y", "z", "image", "hardness", "widths", "root", "inside")
NARROW_ROWS = ("x_narrow", "d_narrow")
TENSORS = (
    *ROWS, *NARROW_ROWS, "values", "ptr", "neighbour", "line", "third", "both", "apart", "near_both", "near_apart",
    "extent", "near_extent", "coefficients", "sums", "numbers", "scalars", "fragment", "members", "fragment_ptr",
    "fragment_weights", "shifts", "levels", "multipliers",
)  # fmt: skip


class Iterations(WaveParts):
    """Solve.

    On entry r is the right-hand side without its level, "multiplier" that level, "weights" the sum of the weights, and
    d where to start from if there is a start (else zero). ``inside`` is one for atoms and zero for the rest of a row.

    With ``has_fragments``, levels and sums of weights are those of fragments, "multipliers" and "fragment_weights".
    "fragment" is that of each atom, "members" and "fragment_ptr" are the atoms of each fragment (CSR).
    """

    NAME = "charges_together"

    def __init__(self, bits: int, has_fragments: int = 0):
        super().__init__(self.NAME, bits, len(TENSORS))
        self.has_fragments = bool(has_fragments)
        self.t = dict(zip(TENSORS, self.tensors, strict=True))
        self.n = {name: self.load_int(self.t["numbers"], k) for k, name in enumerate(NUMBERS)}
        self.s = {name: self.scalar(self.t["scalars"], k) for k, name in enumerate(SCALARS[:5])}
        b, wide = self.builder, ir.VectorType(DOUBLE, self.lanes)
        self.accumulators = [self.variable(wide) for _ in range(3)]
        self.multiplier, self.slope = self.variable(DOUBLE), self.variable(DOUBLE)
        self.count, self.starts, self.status = self.variable(I64), self.variable(I64), self.variable(I64)
        self.rows = self.share(self.n["atoms"])
        self.num_vectors = b.sdiv(self.n["stride"], I64(self.lanes))
        most = self.minimum(b.sdiv(self.num_vectors, I64(VECTORS_OF_A_BLOCK)), BLOCKS)
        self.num_blocks = b.select(b.icmp_signed("<", most, I64(1)), I64(1), most)
        self.blocks = self.share(self.num_blocks)

        b.store(self.scalar(self.t["scalars"], SCALARS.index("multiplier")), self.multiplier)
        b.store(DOUBLE(1.0), self.slope)
        b.store(I64(0), self.count)
        b.store(self.n["has_start"], self.starts)
        self._begin()

        head, search, step, done = (self.function.append_basic_block(n) for n in ("iterate", "search", "step", "end"))
        self.done = done
        b.branch(head)
        b.position_at_end(head)
        b.cbranch(b.icmp_signed("!=", b.load(self.starts, typ=I64), I64(0)), step, search)
        b.position_at_end(search)
        self._stop_if_converged()
        self._precondition()
        self._turn()
        b.branch(step)
        b.position_at_end(step)
        self._step()
        b.branch(head)
        b.position_at_end(done)
        with b.if_then(b.icmp_signed("==", self.begin, I64(0))):
            self._report("multiplier", b.load(self.multiplier, typ=DOUBLE))
            self._report("iterations", b.sitofp(b.load(self.count, typ=I64), DOUBLE))
            self._report("status", b.sitofp(b.load(self.status, typ=I64), DOUBLE))

    # Small things.

    def _report(self, name: str, value) -> None:
        self.builder.store(value, self.at(self.t["scalars"], SCALARS.index(name), DOUBLE))

    @contextmanager
    def _spans(self, *slots: int):
        """First and last vector of each of this thread's blocks; at the end of a block its sums are told."""
        with self.loop(*self.blocks) as block:
            self._clear()
            ends = block, self.add(block, 1)
            yield [self.builder.sdiv(self.mul(self.num_vectors, at), self.num_blocks) for at in ends]
            self._tell(block, *slots)

    @contextmanager
    def _own(self, *slots: int):
        """First atoms of this thread's vectors; sums as of ``_spans``."""
        with self._spans(*slots) as span, self.loop(*(self.mul(at, self.lanes) for at in span), self.lanes) as atom:
            yield atom

    def _get(self, name, atom):
        return self.wide(self.t[name], atom)

    def _put(self, name, atom, value) -> None:
        self.store_wide(value, self.t[name], atom)

    def _clear(self) -> None:
        for variable in self.accumulators:
            self.builder.store(self.all_lanes(DOUBLE(0.0)), variable)

    def _add(self, number: int, first, second=None) -> None:
        """Add lanes, or their products, to one of three sums."""
        b, variable = self.builder, self.accumulators[number]
        term = first if second is None else b.fmul(first, second, flags=("contract",))
        b.store(b.fadd(b.load(variable, typ=variable.allocated_type), term, flags=("contract",)), variable)

    def _tell(self, block, *slots: int) -> None:
        """The sums of a block, to all threads."""
        for slot, variable in zip(slots, self.accumulators, strict=False):
            total = self.reduce(self.builder.load(variable, typ=variable.allocated_type))
            place = self.add(self.mul(block, SLOTS), slot)
            self.builder.store(total, self.at(self.t["sums"], place, DOUBLE))

    def _told(self, slot: int):
        """The sum of all blocks."""
        total, b = self.variable(DOUBLE), self.builder
        b.store(DOUBLE(0.0), total)
        with self.loop(0, self.num_blocks) as block:
            part = self.scalar(self.t["sums"], self.add(self.mul(block, SLOTS), slot))
            b.store(b.fadd(b.load(total, typ=DOUBLE), part), total)
        return b.load(total, typ=DOUBLE)

    def _add_up(self, row: str, out: str, weighted: bool) -> None:
        """Sums of a row over this thread's fragments, over their weights, behind a barrier; another one follows."""
        b, t, total = self.builder, self.t, self.variable(DOUBLE)
        with self.loop(*self.share(self.n["fragments"])) as fragment:
            b.store(DOUBLE(0.0), total)
            ends = fragment, self.add(fragment, 1)
            with self.loop(*(self.load_int(t["fragment_ptr"], at) for at in ends)) as place:
                atom = self.load_int(t["members"], place)
                value = self.scalar(t[row], atom)
                if weighted:
                    root = self.scalar(t["root"], atom)
                    value = b.fmul(b.fmul(root, root), value)
                b.store(b.fadd(b.load(total, typ=DOUBLE), value), total)
            mean = b.fdiv(b.load(total, typ=DOUBLE), self.scalar(t["fragment_weights"], fragment))
            b.store(mean, self.at(t[out], fragment, DOUBLE))
        self.barrier()

    def _of_fragments(self, name: str, atom):
        """A number of the fragment of each lane's atom."""
        found = ir.Constant(ir.VectorType(DOUBLE, self.lanes), ir.Undefined)
        for lane in range(self.lanes):
            value = self.scalar(self.t[name], self.load_int(self.t["fragment"], self.add(atom, lane)))
            found = self.builder.insert_element(found, value, I32(lane))
        return found

    def _times(self, scalar, vector):
        return self.builder.fmul(self.all_lanes(scalar), vector, flags=("contract",))

    def _plus(self, *terms):
        total = terms[0]
        for term in terms[1:]:
            total = self.builder.fadd(total, term, flags=("contract",))
        return total

    def _minus(self, first, second):
        return self.builder.fsub(first, second, flags=("contract",))

    def _product(self, first, second):
        return self.builder.fmul(first, second, flags=("contract",))

    # The parts of an iteration. Slots of sums: 0 and 1 of the preconditioner, 3 and 4 of the direction, 5 and 6 of the
    # product, 7 of the residual; each is read behind the barrier that follows, and written again behind another.

    def _weight(self, atom):
        root = self._get("root", atom)
        return self._product(root, root)

    def _narrowed_residual(self, atom, r) -> None:
        self.store(self.narrow(self._product(self._weight(atom), r)), self.t["x_narrow"], atom)

    def _begin(self) -> None:
        """What the first search or step will ask for."""
        with self._own(7, 3, 4) as atom:
            r = self._get("r", atom)
            self._put("q", atom, self.all_lanes(DOUBLE(0.0)))
            self._narrowed_residual(atom, r)
            d = self._get("d", atom)
            self.store(self.narrow(d), self.t["d_narrow"], atom)
            self._add(0, r, r)
            self._add(1, d)
            self._add(2, d, self._get("widths", atom))
        self.barrier()

    def _leave_if(self, condition, status: int) -> None:
        b = self.builder
        leave, stay = self.function.append_basic_block("leave"), self.function.append_basic_block("stay")
        b.cbranch(condition, leave, stay)
        b.position_at_end(leave)
        b.store(I64(status), self.status)
        b.branch(self.done)
        b.position_at_end(stay)

    def _stop_if_converged(self) -> None:
        b = self.builder
        square = ir.FunctionType(DOUBLE, [DOUBLE])
        norm = b.call(self._declare("llvm.sqrt.f64", square), [self._told(7)])
        with b.if_then(b.icmp_signed("==", self.begin, I64(0))):
            self._report("norm", norm)
        self._leave_if(b.fcmp_ordered("<=", norm, self.s["target"]), CONVERGED)
        self._leave_if(b.not_(b.fcmp_ordered("<", norm, DOUBLE(float("inf")))), INDEFINITE)
        self._leave_if(b.icmp_signed(">=", b.load(self.count, typ=I64), self.n["limit"]), EXHAUSTED)
        b.store(self.add(b.load(self.count, typ=I64), 1), self.count)

    def _precondition(self) -> None:
        """z = M^-1 r, see ``preconditioner.py``: y = B D^-1/2 r, z = D^-1/2 B y, with D^-1/2 as ``root``."""
        t, n = self.t, self.n
        tables = t["line"], t["third"], n["stride"], n["near_tiles"], t["near_extent"]
        keep = self.coefficients(t["coefficients"], t["near_both"], t["near_apart"], n["thirds"])

        def first(atom, waves):
            root = self._get("root", atom)
            y = self._product(root, self._minus(self._get("r", atom), self.widen(waves)))
            self._put("y", atom, y)
            self.store(self.narrow(self._product(root, y)), t["x_narrow"], atom)

        def second(atom, waves):
            root = self._get("root", atom)
            z = self._product(root, self._minus(self._get("y", atom), self._product(root, self.widen(waves))))
            self._put("z", atom, z)
            self._add(0, z)
            self._add(1, z, self._get("r", atom))

        for finish in (first, second):
            self.structure_factors(t["x_narrow"], *tables, keep)
            self.barrier()
            with self._spans(*((0, 1) if finish is second else ())) as span:
                self.potential(t["coefficients"], *tables, n["thirds"], finish, span)
            self.barrier()

    def _turn(self) -> None:
        """The next direction, without total charge; z r is what it would be without z's, for r has no level."""
        b, slope = self.builder, self._told(1)
        if self.has_fragments:
            self._add_up("z", "shifts", weighted=False)
        else:
            whole = self.all_lanes(b.fdiv(self._told(0), self.s["weights"]))
        is_first = b.icmp_signed("==", b.load(self.count, typ=I64), I64(1))
        keep = b.select(is_first, DOUBLE(0.0), b.fdiv(slope, b.load(self.slope, typ=DOUBLE)))
        b.store(slope, self.slope)
        with self._own(3, 4) as atom:
            shift = self._of_fragments("shifts", atom) if self.has_fragments else whole
            z = self._minus(self._get("z", atom), self._product(shift, self._weight(atom)))
            d = self._plus(z, self._times(keep, self._get("d", atom)))
            self._put("d", atom, d)
            self.store(self.narrow(d), self.t["d_narrow"], atom)
            self._add(0, d)
            self._add(1, d, self._get("widths", atom))
        self.barrier()

    def _step(self) -> None:
        """Go along d: all the way if it is where to start from, else to the minimum."""
        b, t, n, s = self.builder, self.t, self.n, self.s
        total, spread = self._told(3), self._told(4)
        # the term of k = 0, see ``ewald.operator``
        everywhere = b.fmul(s["average"], b.fsub(spread, b.fmul(s["squared_eta"], total)))
        by_width = b.fmul(s["average"], total)
        tables = t["line"], t["third"], n["stride"], n["tiles"], t["extent"]
        keep = self.coefficients(t["coefficients"], t["both"], t["apart"], n["thirds"])
        self.structure_factors(t["d_narrow"], *tables, keep)
        self._pairs()
        self.barrier()

        def finish(atom, waves):
            by_atom = self._times(by_width, self._get("widths", atom))
            far = self._plus(self.widen(waves), by_atom, self.all_lanes(everywhere))
            coulomb = self._times(s["constant"], self._plus(self._get("image", atom), far))
            d = self._get("d", atom)
            image = self._plus(coulomb, self._product(self._get("hardness", atom), d))
            image = self._product(image, self._get("inside", atom))
            self._put("image", atom, image)
            self._add(0, image, d)
            self._add(1, image, self._weight(atom))

        with self._spans(5, 6) as span:
            self.potential(t["coefficients"], *tables, n["thirds"], finish, span)
        self.barrier()
        curvature = self._told(5)
        starts = b.icmp_signed("!=", b.load(self.starts, typ=I64), I64(0))
        self._leave_if(b.not_(b.or_(starts, b.fcmp_ordered(">", curvature, DOUBLE(0.0)))), INDEFINITE)
        length = b.select(starts, DOUBLE(1.0), b.fdiv(b.load(self.slope, typ=DOUBLE), curvature))
        b.store(I64(0), self.starts)
        if self.has_fragments:
            self._add_up("image", "levels", weighted=True)
            self._shift_multipliers(length)
        else:
            level = b.fdiv(self._told(6), s["weights"])
            b.store(b.fsub(b.load(self.multiplier, typ=DOUBLE), b.fmul(length, level)), self.multiplier)
            whole = self.all_lanes(level)
        with self._own(7) as atom:
            self._put("q", atom, self._plus(self._get("q", atom), self._times(length, self._get("d", atom))))
            level = self._of_fragments("levels", atom) if self.has_fragments else whole
            image = self._minus(self._get("image", atom), self._product(level, self._get("inside", atom)))
            r = self._minus(self._get("r", atom), self._times(length, image))
            self._put("r", atom, r)
            self._narrowed_residual(atom, r)
            self._add(0, r, r)
        self.barrier()

    def _shift_multipliers(self, length) -> None:
        """Those of this thread's fragments, by a step along d."""
        b, t = self.builder, self.t
        with self.loop(*self.share(self.n["fragments"])) as fragment:
            before, level = (self.scalar(t[name], fragment) for name in ("multipliers", "levels"))
            b.store(b.fsub(before, b.fmul(length, level)), self.at(t["multipliers"], fragment, DOUBLE))

    def _pairs(self) -> None:
        """image = sum_j f d_j, for this thread's rows."""
        b, t = self.builder, self.t
        total = self.variable(self.vector(self.lanes))
        with self.loop(*self.rows) as i:
            b.store(self.constant(0.0, self.lanes), total)
            first, last = self.load_int(t["ptr"], i), self.load_int(t["ptr"], self.add(i, 1))
            whole = b.sub(last, b.srem(b.sub(last, first), I64(self.lanes)))
            with self.loop(first, whole, self.lanes) as place:
                charges = ir.Constant(self.vector(self.lanes), ir.Undefined)
                for lane in range(self.lanes):
                    charges = b.insert_element(charges, self._charge(self.add(place, lane)), I32(lane))
                self.accumulate(total, self.load(t["values"], place, self.lanes), charges)
            rest = self.variable(self.float)
            b.store(self.reduce(self.value(total)), rest)
            with self.loop(whole, last) as place:
                term = b.fmul(self.load_float(t["values"], place), self._charge(place), flags=("contract",))
                b.store(b.fadd(b.load(rest, typ=self.float), term, flags=("contract",)), rest)
            found = b.load(rest, typ=self.float)
            b.store(found if self.float_bytes == 8 else b.fpext(found, DOUBLE), self.at(t["image"], i, DOUBLE))

    def _charge(self, place):
        other = self.builder.load(self.at(self.t["neighbour"], place, I32), typ=I32)
        return self.load_float(self.t["d_narrow"], self.builder.sext(other, I64))

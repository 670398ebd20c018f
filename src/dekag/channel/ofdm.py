"""OFDM over the fading of 3GPP: payload on a resource grid, TDL or CDL, pilots, estimation, LMMSE.

Fading and equaliser are Sionna's. The channel acts on subcarriers, not on samples: the cyclic prefix must
outlast the echoes, and within an OFDM symbol each path changes linearly in time. The mean of that line is the
gain of a subcarrier, its slope is the interference between subcarriers, which leaves out only terms of
second order in Doppler over spacing. Sampling in time would need the same number of draws for each sample.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Complex, Float
from scipy.constants import speed_of_light
from torch import Tensor

from dekag.channel.fading import complex_normal, fit, used
from dekag.channel.ofdm_grid import PREFIX, Layout, OfdmGrid
from dekag.channel.ofdm_receiver import Filter, Statistics, as_one_tap, combine, interpolate, shrink, wiener
from dekag.channel.sionna import seeded_sionna
from dekag.types import Condition, InputError, Received, Symbols
from dekag.units import snr_db_to_noise_power

MODELS = tuple(f"{kind}-{letter}" for kind in ("TDL", "CDL") for letter in "ABCDE")
"""Profiles of TR 38.901, 7.7.1 and 7.7.2."""
Estimation = Literal["perfect", "ls", "lmmse"]
ESTIMATIONS: tuple[Estimation, ...] = get_args(Estimation)
MOST_DOPPLER = 0.1
"""Largest Doppler shift over subcarrier spacing at which a path is nearly linear within a symbol."""
MOST_ECHO = 1e-3
"""Largest interference from echoes after the cyclic prefix that is left out, relative to the signal."""
NOISE_FLOOR = 1e-9
"""Least noise power that the receiver reckons with, so that its matrices stay invertible."""

Gain = Complex[Tensor, "batch elements receivers senders"]
Response = Complex[Tensor, "batch receivers senders symbols tones"]


def estimation_named(name: str) -> Estimation:
    """The estimation of that name; InputError, listing the known ones, if there is none."""
    for known in ESTIMATIONS:
        if name == known:
            return known
    raise InputError(f"unknown estimation {name!r}; known are {', '.join(ESTIMATIONS)}")


@dataclass(frozen=True, kw_only=True)
class OfdmChannel:
    """A TDL or CDL channel of TR 38.901 under OFDM, with one-tap output (`ofdm_receiver.as_one_tap`).

    model: one of `MODELS`; CDL has omnidirectional arrays at half a wavelength, the receiver moves.
    delay_spread_s: rms delay spread in seconds. speed_m_s: of the receiver.
    tx_antennas: each sends a stream of its own, use k on stream k mod tx_antennas; they share the power.
    estimation: "perfect" knows the channel and sends no pilots; "ls" interpolates between pilots and knows
        N0 alone; "lmmse" also knows delay profile and speed.

    SNR is that of an element at one receive antenna: total power 1 from all antennas, E|h|^2 = 1, so that
    more receive antennas give more. A use is one stream's share of an element, and a pilot's element costs
    `tx_antennas` uses. `Condition.pilots` has to pay for them: take the condition from `condition`, whose
    `blocks` state the diversity. Rows that do not fade (`rayleigh` false) have parallel paths of
    constant gain and known channel, which is AWGN; `correlation` and `phase` play no part.

    Symbols complex [batch, uses]; differentiable in them. The fading's seed and then the noise come from
    `rng`, drawn for the rectangle [batch, uses] whatever the mates of an image are.

    Raises InputError if a field is out of range, the delays outlast the cyclic prefix, or the condition does
    not pay for the pilots.
    """

    model: str = "TDL-C"
    delay_spread_s: float = 100e-9
    speed_m_s: float = 0.0
    rx_antennas: int = 1
    tx_antennas: int = 1
    estimation: Estimation = "lmmse"
    grid: OfdmGrid = field(default_factory=OfdmGrid)

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InputError(f"unknown channel model {self.model!r}; known are {', '.join(MODELS)}")
        estimation_named(self.estimation)
        for name, unit in (("delay_spread_s", "seconds"), ("speed_m_s", "metres per second")):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be a number of {unit} of at least 0, got {value}")
        if not 1 <= self.tx_antennas <= self.rx_antennas:
            raise InputError(
                "each stream needs a receive antenna: tx_antennas must be from 1 to rx_antennas,"
                f" got {self.tx_antennas} and {self.rx_antennas}"
            )
        if self._pilot_streams >= self.grid.pilot_tones:
            raise InputError(
                f"pilots of {self.tx_antennas} streams leave no data on a comb of one in"
                f" {self.grid.pilot_tones}; raise pilot_tones"
            )
        if self.doppler > MOST_DOPPLER:
            raise InputError(
                f"at {self.speed_m_s:g} m/s the Doppler shift is {self.doppler:.2f} subcarrier spacings, and"
                f" this channel holds up to {MOST_DOPPLER}; raise spacing_hz or lower the speed"
            )

    @property
    def doppler(self) -> float:
        """Largest Doppler shift over subcarrier spacing."""
        return float(self.speed_m_s / speed_of_light * self.grid.carrier_hz * self.grid.useful_s)

    @property
    def interference(self) -> float:
        """Power that reaches a subcarrier from the others at total power 1.

        A slope of variance (2 pi f_d)^2 m over a ramp of variance T^2 / 12: the bound of Li and Cimini, IEEE
        Trans. Commun. 49(5), 2001. The second moment m of the Doppler spectrum is 1/2 for Clarke's, and 1/4
        for CDL, where the velocity has any direction.
        """
        moment = 1 / 2 if self.model.startswith("TDL") else 1 / 4
        return (2 * math.pi * self.doppler) ** 2 * moment / 12

    def condition(self, *, uses: int, snr_db: float) -> Condition:
        """The condition of one image on at most `uses` uses: its pilots paid for, its diversity stated.

        `blocks` are as many as would average the fading of a Rayleigh channel as much; with pilots the
        closest number that divides their uses.
        """
        pilots, payload = self._split(uses)
        elements = math.ceil(payload / self.tx_antennas)
        layout = self.grid.layout(elements, self._pilot_streams, torch.device("cpu"))
        with seeded_sionna(torch.Generator()) as phy:
            self._check_echoes(phy)
            known = self._statistics(phy, layout.symbols, torch.device("cpu"))
        data = torch.zeros(layout.symbols, self.grid.subcarriers, dtype=torch.float64)
        data[layout.data_time, layout.data_tone] = 1
        # The mean of |h|^2 has variance mean |R|^2 for complex Gaussian gains, and 1/J over J blocks. Between
        # two elements R is a product, so the mean over all pairs is one over times of one over tones.
        across = data @ known.tone.abs().square() @ data.T
        blocks = elements**2 / float((known.time.abs().square() * across).sum())
        divisors = [n for n in range(1, payload + 1) if pilots % n == 0]
        nearest = min(divisors, key=lambda n: abs(math.log(n / blocks)))
        return Condition(
            uses=payload + pilots, snr_db=snr_db, rayleigh=True, blocks=nearest, pilots=pilots // nearest
        )

    def __call__(self, symbols: Symbols, condition: Condition, *, rng: torch.Generator) -> Received:
        """Modulate, fade and demodulate symbols [batch, uses]; gain and noise power are what the receiver knows."""
        batch, width = symbols.shape
        fitted = fit(condition, symbols)
        elements = (fitted.payload + self.tx_antennas - 1) // self.tx_antennas
        self._check_pilots(fitted, elements)
        layout = self.grid.layout(math.ceil(width / self.tx_antennas), self._pilot_streams, symbols.device)
        # 1. payload and pilots onto the grid
        sent = self._sent(layout, elements)
        payload = symbols.to(torch.complex128) * used(fitted, width)
        transmitted = self._map(payload, layout, sent)
        with seeded_sionna(rng) as phy:
            self._check_echoes(phy)
            # 2. through the fading
            middle, change = self.fading(phy, layout.symbols, fitted.rayleigh)
            shape = (self.rx_antennas, layout.symbols, self.grid.subcarriers)
            white = complex_normal(
                batch, math.prod(shape), rng=rng, device=symbols.device, dtype=torch.complex128
            ).unflatten(1, shape)
            noise = snr_db_to_noise_power(fitted.snr_db.double())
            arrived = pass_through(transmitted, middle, change) + noise.sqrt()[:, None, None, None] * white
            # 3. estimation and equalisation at the elements of data
            leaked = torch.where(fitted.rayleigh, self.interference, 0.0)
            floor = noise.clamp(min=NOISE_FLOOR)
            filters = self._filters(phy, layout, sent, floor + leaked)
            true = middle[..., layout.data_time, layout.data_tone].permute(0, 3, 1, 2)
            gain, error = _estimate(filters, arrived, true, layout, fitted.rayleigh)
            share = gain / math.sqrt(self.tx_antennas)
            data = arrived[:, :, layout.data_time, layout.data_tone].transpose(1, 2)
            estimate, left = combine(phy, data, share, (floor + leaked)[:, None] + error)
        return as_one_tap(
            estimate.flatten(1)[:, :width],
            left.flatten(1)[:, :width],
            floor,
            used(fitted, width),
            symbols.dtype,
        )

    @property
    def _pilot_streams(self) -> int:
        return 0 if self.estimation == "perfect" else self.tx_antennas

    def _split(self, uses: int) -> tuple[int, int]:
        """Uses for pilots and for payload, the most payload that fits."""
        for payload in range(uses, 0, -1):
            elements = torch.tensor([math.ceil(payload / self.tx_antennas)])
            pilots = self.tx_antennas * int(self.grid.pilots_for(elements, self._pilot_streams))
            if payload + pilots <= uses:
                return pilots, payload
        raise InputError(f"{uses} uses do not pay for the pilots of one OFDM symbol; use more")

    def _check_pilots(self, condition: Condition, elements: Tensor) -> None:
        spent = self.tx_antennas * self.grid.pilots_for(elements, self._pilot_streams)
        paid = condition.uses - condition.payload
        short = condition.rayleigh & (paid < spent)
        if bool(short.any()):
            raise InputError(
                f"{int(condition.payload[short][0])} payload uses need {int(spent[short][0])} uses of pilots,"
                f" but the condition pays for {int(paid[short][0])}; take it from OfdmChannel.condition"
            )

    def _sent(self, layout: Layout, elements: Tensor) -> Bool[Tensor, "batch pilots"]:
        """The pilots that an image sends: those up to the last OFDM symbol that it uses."""
        return layout.pilot_time < self.grid.symbols_for(elements, self._pilot_streams)[:, None]

    def _map(
        self, payload: Symbols, layout: Layout, sent: Bool[Tensor, "batch pilots"]
    ) -> Complex[Tensor, "batch senders symbols tones"]:
        """Streams share the power on data; on a pilot's element one has all of it."""
        streams = self.tx_antennas
        missing = len(layout.data_time) * streams - payload.shape[1]
        shared = torch.nn.functional.pad(payload, (0, missing)).unflatten(1, (-1, streams))
        grid = payload.new_zeros(len(payload), streams, layout.symbols, self.grid.subcarriers)
        grid[:, :, layout.data_time, layout.data_tone] = shared.transpose(1, 2) / math.sqrt(streams)
        for stream in range(self._pilot_streams):
            grid[:, stream, layout.pilot_time, layout.pilot_tone + stream] = sent.to(grid.dtype)
        return grid

    def fading(
        self, phy: ModuleType, symbols: int, fades: Bool[Tensor, " batch"]
    ) -> tuple[Response, Response]:
        """Response in the middle of each OFDM symbol, and its change over the symbol's useful part."""
        device = fades.device
        # at the beginning, the middle and the end of every symbol
        paths, delays = self._model(phy, str(device))(
            batch_size=len(fades), num_time_steps=2 * symbols + 1, sampling_frequency=2 / self.grid.symbol_s
        )
        tones = phy.channel.subcarrier_frequencies(
            self.grid.subcarriers, self.grid.spacing_hz, precision="double", device=str(device)
        )
        response = phy.channel.cir_to_ofdm_channel(tones, paths, delays)[:, 0, :, 0].to(torch.complex128)
        change = (response[..., 2::2, :] - response[..., :-2:2, :]) / (1 + PREFIX)
        # without fading: one path from each antenna, of the same power in all as under fading
        steady = math.sqrt(self.rx_antennas) * torch.eye(
            self.rx_antennas, self.tx_antennas, dtype=response.dtype, device=device
        )
        row = fades[:, None, None, None, None]
        middle = torch.where(row, response[..., 1::2, :], steady[..., None, None])
        return middle, torch.where(row, change, 0.0)

    def _model(self, phy: ModuleType, device: str) -> Callable[..., tuple[Tensor, Tensor]]:
        """Sionna's generator of path gains and delays."""
        kind, letter = self.model.split("-")
        tr38901 = phy.channel.tr38901
        # double precision: the change within a symbol is a small difference
        common = {
            "delay_spread": self.delay_spread_s,
            "carrier_frequency": self.grid.carrier_hz,
            "min_speed": self.speed_m_s,
            "max_speed": self.speed_m_s,
            "precision": "double",
            "device": device,
        }
        model: Callable[..., tuple[Tensor, Tensor]]
        if kind == "TDL":
            model = tr38901.TDL(letter, num_rx_ant=self.rx_antennas, num_tx_ant=self.tx_antennas, **common)
            return model
        sender, receiver = (
            tr38901.AntennaArray(
                num_rows=1,
                num_cols=count,
                polarization="single",
                polarization_type="V",
                antenna_pattern="omni",
                carrier_frequency=self.grid.carrier_hz,
                precision="double",
                device=device,
            )
            for count in (self.tx_antennas, self.rx_antennas)
        )
        model = tr38901.CDL(letter, ut_array=receiver, bs_array=sender, direction="downlink", **common)
        return model

    def _check_echoes(self, phy: ModuleType) -> None:
        tdl = phy.channel.tr38901.TDL(self.model[-1], self.delay_spread_s, self.grid.carrier_hz, device="cpu")
        late = (tdl.delays / self.grid.useful_s - PREFIX).clamp(min=0)
        # An echo that is late by a share e of the useful part loses e of it and hears e of the last symbol.
        if float((tdl.mean_powers * (2 * late - late.square())).sum()) > MOST_ECHO:
            raise InputError(
                f"a delay spread of {self.delay_spread_s:g} s outlasts the cyclic prefix of"
                f" {PREFIX * self.grid.useful_s:.2g} s; lower it or lower spacing_hz"
            )

    def _statistics(self, phy: ModuleType, symbols: int, device: torch.device) -> Statistics:
        letter, grid = self.model[-1], self.grid
        common = {"precision": "double", "device": str(device)}
        tone = phy.ofdm.tdl_freq_cov_mat(
            letter, grid.spacing_hz, grid.subcarriers, self.delay_spread_s, **common
        )
        if self.model.startswith("TDL"):
            time = phy.ofdm.tdl_time_cov_mat(
                letter, self.speed_m_s, grid.carrier_hz, grid.symbol_s, symbols, **common
            )
            return Statistics(time=time, tone=tone)
        # Level paths, and a velocity whose azimuth and zenith are uniform: the mean over the zenith of
        # J0(x sin zenith) is J0(x / 2)^2 (Gradshteyn and Ryzhik, 6.681).
        angle = 2 * math.pi * self.doppler * (1 + PREFIX) * torch.arange(symbols, dtype=torch.float64)
        lag = torch.special.bessel_j0((angle[:, None] - angle) / 2).square()
        return Statistics(time=lag.to(tone), tone=tone)

    def _filters(
        self,
        phy: ModuleType,
        layout: Layout,
        sent: Bool[Tensor, "batch pilots"],
        noise: Float[Tensor, " batch"],
    ) -> list[Filter]:
        """One for each stream that sends pilots."""
        if self.estimation == "ls":
            return [shrink(interpolate(layout, sent, noise))] * self.tx_antennas
        known = self._statistics(phy, layout.symbols, noise.device)
        return [wiener(layout, sent, noise, known, stream) for stream in range(self._pilot_streams)]


def _estimate(
    filters: Sequence[Filter],
    arrived: Complex[Tensor, "batch receivers symbols tones"],
    true: Gain,
    layout: Layout,
    fades: Bool[Tensor, " batch"],
) -> tuple[Gain, Float[Tensor, "batch elements"]]:
    """Gain at the elements of data, and the power of its error at one antenna, mean over the streams.

    It is the true gain where nothing fades or no stream sends pilots.
    """
    if not filters:
        return true, torch.zeros_like(true.real[..., 0, 0])
    heard = [arrived[:, :, layout.pilot_time, layout.pilot_tone + stream] for stream in range(len(filters))]
    gains = [filter_.weights @ pilots.transpose(1, 2) for filter_, pilots in zip(filters, heard, strict=True)]
    error = torch.stack([filter_.error for filter_ in filters]).mean(dim=0)
    gain = torch.where(fades[:, None, None, None], torch.stack(gains, dim=-1), true)
    return gain, torch.where(fades[:, None], error, 0.0)


def pass_through(
    transmitted: Complex[Tensor, "batch senders symbols tones"], middle: Response, change: Response
) -> Complex[Tensor, "batch receivers symbols tones"]:
    """Each subcarrier through its gain, and the interference of a gain that changes linearly in time.

    The change acts on the samples of the useful part as a ramp from -1/2 to 1/2, as if the subcarriers beyond
    the band were in use likewise.
    """
    tones = transmitted.shape[-1]
    gained = (middle * transmitted[:, None]).sum(dim=2)
    changed = (change * transmitted[:, None]).sum(dim=2)
    ramp = (torch.arange(tones, device=transmitted.device, dtype=torch.float64) + 0.5) / tones - 0.5
    leaked: Tensor = torch.fft.fft(ramp * torch.fft.ifft(changed, dim=-1), dim=-1)
    return gained + leaked

"""Registry of the systems, by the registered name of their pretraining model."""

from amae_plugin.errors import UserError
from amae_plugin.models import audio_mae, cav_mae, eat, m2d, mae_ast, ssast
from amae_plugin.models.settings import Settings
from amae_plugin.models.system import System

SYSTEMS: dict[str, System] = {
    "amae_audio_mae": audio_mae.SYSTEM,
    "amae_mae_ast": mae_ast.SYSTEM,
    "amae_ssast": ssast.SYSTEM,
    "amae_m2d": m2d.SYSTEM,
    "amae_eat": eat.SYSTEM,
    "amae_cav_mae": cav_mae.SYSTEM,
}


def find_system(settings: Settings) -> System:
    """Find the system that a model section names.

    Raises:
        UserError: no system has that name.
    """
    name = settings.get("_name")
    if name not in SYSTEMS:
        raise UserError(f"_name={name} is no pretraining system; there are: {', '.join(SYSTEMS)}")
    return SYSTEMS[name]

from dekag.alignment.cala import CalaConfig as CalaConfig
from dekag.alignment.few_steps import FewStepConfig as FewStepConfig
from dekag.alignment.makd import MakdConfig as MakdConfig

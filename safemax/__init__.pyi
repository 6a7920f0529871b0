from safemax.api import evaluate as evaluate
from safemax.api import load_data as load_data
from safemax.api import load_model as load_model
from safemax.api import method as method
from safemax.api import pretrain as pretrain
from safemax.api import sample as sample
from safemax.api import unlearn as unlearn
from safemax.data.dataset import Dataset as Dataset
from safemax.data.dataset import Split as Split
from safemax.diffusion.model import Diffusion as Diffusion
from safemax.diffusion.sampling import FAST as FAST
from safemax.diffusion.sampling import PAPER as PAPER
from safemax.diffusion.sampling import Sampler as Sampler
from safemax.errors import InputError as InputError
from safemax.errors import NonFiniteError as NonFiniteError
from safemax.evaluation.protocol import Evaluation as Evaluation
from safemax.judges.config import JudgeConfig as JudgeConfig
from safemax.reports.images_and_tables import grid as grid
from safemax.training.method import Method as Method
from safemax.training.settings import Training as Training

def __dir__() -> list[str]: ...

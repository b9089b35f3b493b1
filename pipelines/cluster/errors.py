"""The error that means "Kubeflow Pipelines did not do what was asked"."""


class ClusterError(Exception):
    """One line that says what failed and what to do; the command line exits with 1.

    Attributes:
        status: of HTTP; 0 where there was no whole answer.
        passing: whether the same request may succeed a little later.
    """

    def __init__(self, message: str, status: int = 0, passing: bool = False) -> None:
        super().__init__(message)
        self.status, self.passing = status, passing

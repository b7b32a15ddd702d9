"""The base class of the feedback rules.

A rule knows two things: what a layer stores when it is built (`initial_feedback`) and
what its backward pass sees (`backward_kernel`). Rules know nothing of layers or models.
"""

PACKAGE = "keras_fa"


class FeedbackRule:
    """Base class of the feedback rules.

    Subclasses override the two methods below. The layer owns the variable that holds
    `initial_feedback`, so one rule object can serve any number of layers.
    """

    def for_layer(self):
        """The rule that one more layer keeps; itself unless a layer needs its own."""
        return self

    @property
    def stores_feedback(self):
        """Whether layers store a B: whether the rule overrides `initial_feedback`."""
        return type(self).initial_feedback is not FeedbackRule.initial_feedback

    def initial_feedback(self, kernel, kernel_initializer):
        """The feedback to store with a layer; not overridden where nothing is stored.

        It may be called on symbolic tensors while an unbuilt model is traced.

        Args:
            kernel: The layer's kernel W, already initialised, of any rank.
            kernel_initializer: What drew it: a Keras initializer or any callable
                `(shape, dtype) -> values`.

        Returns:
            B, an array of the kernel's shape.
        """
        raise NotImplementedError

    def backward_kernel(self, kernel, feedback):
        """The kernel of the backward pass.

        Args:
            kernel: The current W.
            feedback: What the layer stored, None where it stores nothing.

        Returns:
            A tensor of the kernel's shape and dtype. `kernel` itself means ordinary
            backpropagation.
        """
        raise NotImplementedError

    def get_config(self):
        """Constructor arguments, JSON-serialisable."""
        return {}

    @classmethod
    def from_config(cls, config):
        """The rule that `get_config` described."""
        return cls(**config)

    def __repr__(self):
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

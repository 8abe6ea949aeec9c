"""Training tasks: each module turns a model and data into a `Task` for the training loop.

Every module has ``make_task(model_name, model, data, config, *, seed, ...) -> Task``. ``model_name`` is the name that
the user chose, an alias included; the task is named EXPERIMENT/MODEL_NAME. ``Task.config`` is
``{"model": {"name": model_name, **fields of the model's config}, "data": {...}}``.
"""

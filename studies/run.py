def run_study(config, prepared, arguments, argv):
    raise NotImplementedError

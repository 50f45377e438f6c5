"""The tasks of the pipeline as KFP components: one file each, no logic.

A component unpacks its artifacts and calls the function of the same name in `rco.tasks`. All run in one image, which holds
rco and its locked dependencies; nothing is installed at run time. The image's name carries a hash of the code, so that a
cache never hides an edit, locally too, where the subprocess runner takes the code from the checkout.
"""

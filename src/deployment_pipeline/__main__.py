from deployment_pipeline.cli import main

main()
